"""Images: where they come from, batches, augmentation, photos of digits."""
