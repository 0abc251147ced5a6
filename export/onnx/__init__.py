"""The model as ONNX graphs, and what is done to them.

graphs            the trained model: prompts to vectors, a picture and words to features, whole and in parts
mask_head         features and words to masks of any size
winograd_decoder  the decoder and the mask head's first stage, in the form for CPUs
half_precision    products in float16 or bfloat16, and the proof that they are
for_cpu           the patterns that a CPU runs faster in another form
editable_graph    a graph that is searched for patterns and rewritten
shared_weights    one file of weights for several graphs
"""
