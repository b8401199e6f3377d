"""The page. Gradio reads these when it is imported: it tells nobody of its use, and makes no tables of its requests."""

import os

os.environ.update(GRADIO_ANALYTICS_ENABLED="False", GRADIO_ANALYTICS_CACHE_FREQUENCY=str(10**9))
