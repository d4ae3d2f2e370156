"""Images of digits: MNIST and a stand-in, batches, augmentation, photos."""
