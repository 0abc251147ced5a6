"""Adapters to other tools. Each imports its tool's package when it is used; docs/interfaces.md shows all.

supervision   results as `supervision.Detections`
huggingface   results as the image-segmentation pipelines of transformers give them
fiftyone      a model for `dataset.apply_model`
cvat          a function for `cvat-cli task auto-annotate` and CVAT's agents
label_studio  a machine learning backend for Label Studio
pycocotools   results as a `pycocotools.coco.COCO`, and annotations of one as a `Segmentation`
trackers      instances of a video that keep an id
objects       what a result shows, as most of these take it

PyTorch and CuPy need no adapter: they read a result's arrays by DLPack.
"""
