/* DEVICE_TOO stands before functions of C that kernels of the cuda device call too. */
#ifndef OPS_DEVICE_TOO_H
#define OPS_DEVICE_TOO_H

#ifdef __CUDACC__
#define DEVICE_TOO __host__ __device__
#else
#define DEVICE_TOO
#endif

#endif
