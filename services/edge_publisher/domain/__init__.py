"""What comes out of a sensor -> its values: the pure work.

* `decoder`: what all decoders of bytes have in common
* `tfluna`, `mpu6050`, `hcsr04`: one sensor each
* `lines`: the lines that a microcontroller writes
* `picture`: what is measured in a picture of the camera
* `pace`: how often something may happen
"""
