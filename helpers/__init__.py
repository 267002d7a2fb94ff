"""The alignment methods: data, models, losses, rollouts, training, evaluation and figures."""

import logging

# peft imports bitsandbytes, which warns on every CPU that it found no 4-bit kernel on the hub; the
# sentence "pip install kernels" in a learner's first cell sends them off for nothing.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
