"""TIFF and SVS read without OpenSlide: directories, tiles, JPEG streams."""
