# no C types: the base class is Python's; compiled for the cost of its calls
