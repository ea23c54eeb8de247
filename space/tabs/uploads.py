import gradio as gr

UploadedImage = gr.Image
