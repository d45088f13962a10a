"""The fast way through a training step on CUDA: a Llama-like decoder forwards and backwards, written out by hand.

    fit.py        can this model and machine take it? if not, why
    rows.py       packed rows as tensors whose shapes never change
    pointwise.py  norm, SwiGLU, rotary positions, dropout, loss: what they compute, in plain torch
    kernels.py    the same as Triton kernels
    linear.py     frozen matrices (16 or 4 bit) with their LoRA parts
    voices.py     the same with a frozen adapter, and of each row the voice that speaks it
    block.py      one decoder block, forwards and backwards
    second.py     the second loss of a pass: each reply against its twin under another identity
    engine.py     the whole pass, captured as one CUDA graph

Nothing here owns a loop: `mrp.train.passes` hands rows in and gets the losses and the gradients.
"""
