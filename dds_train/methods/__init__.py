"""One image at a time: descent on its latent, the reference that `fit` is checked against."""
