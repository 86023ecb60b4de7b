"""The screens of `adpa show`, as pure functions from the store to text."""
