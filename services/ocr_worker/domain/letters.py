"""Letters that the recogniser was not trained to know, and how it knows them.

PP-OCRv6 has every sign of Spanish but one: of `¡Hola!` it reads `Hola!`. What it sees before its last layer
tells the sign from all others, so that a column was added to that layer, which was trained on drawn lines by
`models/training/ocr_letters.py`; nothing else of the network is touched. Trained with 36 fonts, it said 90 %
of the signs in ten others, and one too many in 1 % of the lines; what stands here was trained with all 46.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

# float32 [121] each: the weights of the last layer, then the bias.
_WRITTEN: Final = {
    "¡": (
        "MXj+rrj!Xi1^%PG6=H%uwgM}^(kTJHHk|J~R^M#Cb5R4ndL$h_%|J#yKb}~=s7v|23)K+6d5R#ueUeu_IlFPbPZ?@HJ&}dHq"
        "xJ<pR8g5e=n_#rct5?pv4A8#p0<R&z%3O%DFj=-{;0XV`l(?)q`L^d?j{Altc3%<Nsd82`LN8rL&4y^E$+v@)jzkr`?f2-ox"
        "=e=?ZHmCl+_YG%iX>{2oW4T)*}YKkL+H);v=#?FOW08A0Mc_Lma)j5lyDPl#P--&KDHDV%9XhKtDu1%BiKjvT80qm|D8NDeY"
        "H2Pp_FhL`r5p76-q(hP<b|k0;YU93cw6g2z=oLlYprPdT8yXXhh6OCuCMdjobo{KWY@POwzI&B<pz;$D_La4-kI-9nnakwE3"
        "W=KwFiQ8x%bH{v!v-v%bXS=L}aQL>9Z3QU(iCe2a4(dwu^2)3j>{VNu|Y9R@}Ql8g7MlYMbG4C0^gNlH>m6jB}MRaXEdi)u^"
        "ov)rfHGrhPjZOzX;1uRPkHIfK2p?>|>~9dhJ|?X_Q6YD`uOqR%;C&Fi3MGI(XqTG4odi+63NxfVT!72H;eu?ve5o0~e@%@(x"
        "Nc*;LZsF`8X_A#=wx3$C5wqZWcOvj"
    ),
}

LETTERS: Final[Mapping[str, NDArray[np.float32]]] = {
    letter: np.frombuffer(base64.b85decode(written), "<f4") for letter, written in _WRITTEN.items()
}
