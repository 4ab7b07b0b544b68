"""The commands: each wires rooms together, from its typed configuration."""

import diffusers
import transformers

# Their notes on every load contain nothing that a user of the command line could act on.
diffusers.utils.logging.set_verbosity_error()
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
