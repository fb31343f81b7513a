"""The local page of `eem view`. What it computes is apart from how it is drawn; only `page` imports Gradio."""
