/* What grows with the batches an engine has seen, as how much cache one sequence may hold is bounded by the arena alone. */
#include "exec/engine.h"

#include <stdbool.h>
#include <stdlib.h>

enum { BLOCKS_MOST = 1 << 27 };

rt_code rt_room_for_blocks(rt_engine *e, int64_t count, rt_status *st) {
  rt_step *step = &e->step;
  if (count <= step->block_room) return RT_OK;
  int64_t room = step->block_room ? step->block_room : 256;
  while (room < count) room *= 2;
  for (int32_t g = 0; g < e->n_groups && room <= BLOCKS_MOST; g++) {
    rt_block *grown = realloc(step->blocks[g], (size_t)room * sizeof *grown);
    if (!grown) room = BLOCKS_MOST + 1;
    else step->blocks[g] = grown;
  }
  if (room > BLOCKS_MOST)
    return rt_fail(st, RT_NO_MEMORY, "no memory for the block tables of a batch of %lld pages; run fewer sequences", (long long)count);
  step->block_room = (int32_t)room;
  return RT_OK;
}

rt_code rt_room_for_splits(rt_engine *e, int32_t splits, rt_status *st) {
  if (splits <= e->splits || e->share == 0) return RT_OK;
  size_t room = e->splits ? (size_t)e->splits : 4;
  while (room < (size_t)splits) room *= 2;
  size_t rows = room * RT_SPLIT_UNITS * (size_t)e->share, out = rows * (size_t)e->partial_floats / (size_t)e->query_rows;
  e->splits = 0;
  free(e->partials.out);
  e->partials.out = aligned_alloc(64, (out + 17 * rows) * sizeof(float));
  if (!e->partials.out)
    return rt_fail(st, RT_NO_MEMORY, "no memory for attention over %d pages; shorten the sequence", splits * RT_SPLIT);
  e->partials.sum = e->partials.out + out, e->partials.max = e->partials.sum + 16 * rows;
  e->splits = (int32_t)room;
  return RT_OK;
}

void rt_room_free(rt_engine *e) {
  for (int32_t i = 0; e->step.blocks && i < e->n_groups; i++) free(e->step.blocks[i]);
  free(e->partials.out);
}
