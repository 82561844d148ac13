"""What a model reads besides text: pictures (`image_files`, `image`, then `vision` in the model),
and sound (`audio`). Files of other kinds than PNG, PPM and WAV need an optional package."""
