"""The page's look: Gradio's theme with its bundled fonts, and our style sheet and script."""

from pathlib import Path

import gradio as gr
from gradio.themes.utils.fonts import Font, LocalFont

STATIC = Path(__file__).parent / "static"
STYLE = (STATIC / "style.css").read_text(encoding="utf-8")
SCRIPT = "\n".join((STATIC / name).read_text(encoding="utf-8") for name in ("inputs.js", "page.js"))
ICON = (STATIC / "icon.svg").read_bytes()


def theme() -> gr.themes.Base:
    made: gr.themes.Base = gr.themes.Base(
        primary_hue=gr.themes.colors.slate,
        secondary_hue=gr.themes.colors.slate,
        neutral_hue=gr.themes.colors.slate,
        font=(LocalFont("IBM Plex Sans", weights=(400, 700)), Font("system-ui"), Font("sans-serif")),
        font_mono=(LocalFont("IBM Plex Mono", weights=(400, 700)), Font("ui-monospace"), Font("monospace")),
        radius_size=gr.themes.sizes.radius_md,
        text_size=gr.themes.sizes.text_md,
    )
    return made.set(
        body_background_fill="#f8fafc",
        body_background_fill_dark="#0b1220",
        block_background_fill="white",
        block_background_fill_dark="#131c2e",
        block_border_color="*neutral_200",
        block_border_color_dark="*neutral_700",
        block_label_text_color="*neutral_600",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="#a9b6c8",
        block_title_text_color="*neutral_700",
        block_title_text_weight="700",
        block_title_text_size="*text_sm",
        input_background_fill="white",
        input_background_fill_dark="#0b1220",
        input_border_width="1px",
        input_border_color="#94a3b8",
        input_border_color_dark="#64748b",
        input_border_color_focus="*primary_500",
        checkbox_label_background_fill="white",
        checkbox_label_background_fill_dark="#0b1220",
        checkbox_label_border_width="1px",
        checkbox_label_border_color="#94a3b8",
        checkbox_label_border_color_dark="#64748b",
        checkbox_border_color="#64748b",
        checkbox_border_color_dark="#94a3b8",
        checkbox_background_color="white",
        checkbox_background_color_dark="#0b1220",
        button_secondary_background_fill="white",
        button_secondary_background_fill_dark="#0b1220",
        button_secondary_border_color="#94a3b8",
        button_secondary_border_color_dark="#64748b",
        button_border_width="1px",
        checkbox_background_color_selected="#334155",
        checkbox_background_color_selected_dark="#94a3b8",
        button_primary_background_fill="#1e293b",
        button_primary_background_fill_dark="#e2e8f0",
        button_primary_background_fill_hover="#334155",
        button_primary_background_fill_hover_dark="#ffffff",
        button_primary_text_color="white",
        button_primary_text_color_dark="#0f172a",
        color_accent="#334155",
        slider_color="#475569",
        slider_color_dark="#94a3b8",
    )
