"""Every run draws the same examples, on one thread; run `python -m pytest` from the top folder."""
import hypothesis
import torch

torch.set_num_threads(1)
hypothesis.settings.register_profile("seeded", deadline=None, derandomize=True, max_examples=25)
hypothesis.settings.load_profile("seeded")
