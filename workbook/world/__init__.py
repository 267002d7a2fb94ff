"""The tiny world: generated problems and questions, and the model that grew up in it.

Everything here follows from seeds.  `splits` says which problem may stand where, `maths` and `qa`
generate the tasks, `preferences` judges answers, `corpus` writes the raw text on which `pretrain`
trains the base model, `tokenizer` learns the byte-level vocabulary.
"""
