// Declarations for the CUDA headers of PyTorch. See README.md.
#pragma once

typedef struct cublasContext* cublasHandle_t;
typedef enum {} cublasStatus_t;
