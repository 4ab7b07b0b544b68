"""dds_train: image translators trained from a sentence with the Delta Denoising Score."""
