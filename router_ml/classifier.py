CLIP=4.0
FEATURE_FLOOR=.02
import numpy as np
def sigmoid(z): return 1/(1+np.exp(-z))
def logit(p): return np.log(p/(1-p))
