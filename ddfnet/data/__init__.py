"""Data: sources of images, and the stream from them to batches on the device."""
