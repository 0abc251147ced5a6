"""`Segmentation` and its output forms: overlay, COCO, files."""
