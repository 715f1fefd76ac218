"""What comes out of a sensor -> its values: the pure work.

* `decoder`: what all decoders of bytes have in common
* `tfluna`, `mpu6050`, `hcsr04`: one sensor each
* `picture`: what is measured in a picture of the camera
"""
