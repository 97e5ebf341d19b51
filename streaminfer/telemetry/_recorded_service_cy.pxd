# no C types, because the base class is a Python class; compiled to make its calls cheaper
