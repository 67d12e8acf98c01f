"""What a trained network says of images: one at a time, a stream of files, or a whole split."""
