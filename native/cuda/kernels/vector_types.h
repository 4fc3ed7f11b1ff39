// The compiler's vector types as the host sees them in parameters.h.
#pragma once

#if !defined(__CUDACC__)
struct int2 {
    int x, y;
};
#endif
