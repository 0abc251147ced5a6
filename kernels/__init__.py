"""The mask head's kernels and the readable definition they are held to, and the kernels of preprocessing.

reference   what the mask head computes, in torch: low-resolution score and Gram maps, then any output size
mask_head   the same functions on torch tensors: Triton kernels on a GPU, the definition on the CPU
score_maps  stage 1 in Triton: features and words to score and Gram maps
resolve     stage 2 in Triton: those maps to labels, probabilities or packed masks of any size
names       labels of words to labels of names, in place: groups, background words, thresholds of names
resize      preprocessing in Triton: Pillow's resize and the normalisation, bit for bit
variants    which types and tiles the kernels are compiled with
compile     cubins and PTX for every GPU, without one; `python -m kernels.compile` prints what they take
"""
