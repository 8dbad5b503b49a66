"""Attention over pages for unmodified transformers models, by the fastest way that is right here.

    model -> interface.py -> AttentionBackend.attend -> pages

`step.py` says what a step is, `backend.py` what a way of attending has to do, `choose.py` which
ones there are on a device.
"""
