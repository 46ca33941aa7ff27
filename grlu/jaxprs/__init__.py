"""Jaxprs as data: `calls` reads one equation and its body, `widening` evaluates in float32."""
