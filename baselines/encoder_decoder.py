"""A plain encoder-decoder CNN, taught by squared error alone: `glcic.py train --loss l2`."""
from baselines import glcic

DRAWS, CALLS = False, 1
inpaint = glcic.load(glcic.WEIGHTS / "encoder_decoder.pt")
