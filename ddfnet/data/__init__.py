"""Classification data: images in, batches on the device out."""
