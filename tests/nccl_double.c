/* The functions of nccl.h that the sender calls, with the header's own types, without a GPU:
 * each call is written to the file named by NCCL_DOUBLE as one line. */
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>

typedef struct { char internal[128]; } ncclUniqueId;
typedef struct ncclComm *ncclComm_t;
typedef int ncclResult_t, ncclDataType_t, ncclRedOp_t;
typedef struct CUstream_st *cudaStream_t;
struct ncclComm { int nranks, rank; };

static FILE *record(void) { return fopen(getenv("NCCL_DOUBLE"), "a"); }

const char *ncclGetErrorString(ncclResult_t result) {
  return result == 5 ? "invalid usage" : "no error";
}
ncclResult_t ncclGetVersion(int *version) { *version = 22705; return 0; }
ncclResult_t ncclGetUniqueId(ncclUniqueId *id) {
  for (int i = 0; i < 128; i++) id->internal[i] = (char)(200 + i);
  return 0;
}
ncclResult_t ncclCommInitRank(ncclComm_t *comm, int nranks, ncclUniqueId id, int rank) {
  if (nranks == 13) return 5;
  for (int i = 0; i < 128; i++) if (id.internal[i] != (char)(200 + i)) return 5;
  *comm = malloc(sizeof **comm);
  (*comm)->nranks = nranks; (*comm)->rank = rank;
  FILE *out = record(); fprintf(out, "init %d %d\n", nranks, rank); fclose(out);
  return 0;
}
ncclResult_t ncclAllReduce(const void *send, void *recv, size_t count, ncclDataType_t type,
                           ncclRedOp_t op, ncclComm_t comm, cudaStream_t stream) {
  FILE *out = record();
  fprintf(out, "all_reduce %zu %d %d %d %zu %d\n", count, type, op, comm->nranks,
          (size_t)stream, send == recv);
  fclose(out);
  return 0;
}
ncclResult_t ncclBroadcast(const void *send, void *recv, size_t count, ncclDataType_t type,
                           int root, ncclComm_t comm, cudaStream_t stream) {
  FILE *out = record();
  fprintf(out, "broadcast %zu %d %d %d %zu ", count, type, root, comm->nranks, (size_t)stream);
  for (size_t i = 0; i < count; i++) fprintf(out, "%02x", ((const unsigned char *)send)[i]);
  fprintf(out, "\n");
  fclose(out);
  return send == recv ? 0 : 5;
}
ncclResult_t ncclCommAbort(ncclComm_t comm) {
  FILE *out = record(); fprintf(out, "abort %d\n", comm->nranks); fclose(out);
  free(comm);
  return 0;
}
