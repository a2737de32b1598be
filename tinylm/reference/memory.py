import numpy as np

empty = np.empty
