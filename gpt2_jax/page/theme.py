"""How the page looks: one accent, quiet surfaces, the system's own fonts."""

import gradio as gr


def theme() -> gr.themes.Base:
    """The look of the page: the reader's own fonts, quiet colours."""
    sans = ("ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")
    mono = ("ui-monospace", "SFMono-Regular", "Menlo", "DejaVu Sans Mono", "monospace")
    return gr.themes.Base(
        primary_hue=gr.themes.colors.teal,
        secondary_hue=gr.themes.colors.teal,
        neutral_hue=gr.themes.colors.slate,
        radius_size=gr.themes.sizes.radius_md,
        text_size=gr.themes.sizes.text_md,
        font=sans,
        font_mono=mono,
    ).set(
        body_background_fill="*neutral_50",
        body_background_fill_dark="*neutral_950",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_400",
        block_background_fill="transparent",
        block_background_fill_dark="transparent",
        block_border_width="0px",
        block_border_width_dark="0px",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_400",
        block_padding="0px",
        block_shadow="none",
        block_title_text_color="*neutral_900",
        block_title_text_color_dark="*neutral_100",
        block_title_text_weight="600",
        border_color_primary="*neutral_200",
        border_color_primary_dark="*neutral_700",
        button_secondary_background_fill="*neutral_100",
        button_secondary_background_fill_hover="*neutral_200",
        input_background_fill="white",
        input_background_fill_dark="*neutral_950",
        input_border_width="1px",
        input_border_width_dark="1px",
        input_border_color="*neutral_300",
        input_border_color_dark="*neutral_700",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_600",
        button_primary_text_color="white",
        link_text_color="*primary_700",
        link_text_color_dark="*primary_300",
        slider_color="*primary_600",
    )
