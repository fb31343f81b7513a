"""The local page `eem view`: what it computes, apart from what it is drawn with; `page` alone imports Gradio."""
