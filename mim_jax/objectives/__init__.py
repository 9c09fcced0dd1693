"""Pure loss functions of arrays, in fp32."""
