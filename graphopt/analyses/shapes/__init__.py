"""Shape inference: types, shapes and shape data of every value, static and symbolic."""
