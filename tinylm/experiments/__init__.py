"""Many runs instead of one: ablations, scaling laws, and the size of model that suits a budget."""
