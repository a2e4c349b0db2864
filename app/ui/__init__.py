"""The playground at /ui. It calls the service's own HTTP API inside the process.

The rest of the app imports only `mount`, which imports Gradio when it is called.
"""

import importlib.util
import os
from typing import TYPE_CHECKING

from app.errors import StartError, install_command

if TYPE_CHECKING:
    from app.http.application import Application
    from app.service import Service


def mount(app: "Application", service: "Service") -> None:
    """Adds the page to the app; raises StartError if the extra `ui` is not installed."""
    if importlib.util.find_spec("gradio") is None:
        raise StartError(f"the page at /ui needs Gradio: run {install_command('ui')}, or unset REWARD_UI")
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read at import
    from app.ui.page import mount_page

    mount_page(app, service)
