"""GLCIC with gated convolutions (Yu et al. 2019, section 3.1): `python -m baselines.glcic train
--gated`. Of their paper, only the gates: not the second, refining network, nor its attention, nor
their discriminator. One network call, which costs what GLCIC does; 2.9 MB of weights."""
from baselines import glcic

DRAWS, CALLS, ANY_SIZE = False, 1, False
inpaint = glcic.load(glcic.WEIGHTS / "gated_convolution.pt")
