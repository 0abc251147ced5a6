"""What a session returns, and the forms it is shown and kept in: overlay, COCO, run lengths."""
