/* The edge: every number of a batch is proven against the engine's limits, then turned into a step's tables. */
#include "exec/engine.h"
#include "exec/sample.h"

#include <stdbool.h>
#include <string.h>

static bool range(rt_status *st, const char *what, int64_t at, int64_t value, int64_t low, int64_t high) {
  if (value >= low && value <= high) return true;
  if (at < 0) rt_fail(st, RT_INVALID, "batch: %s is %lld; it must be %lld to %lld", what, (long long)value, (long long)low, (long long)high);
  else rt_fail(st, RT_INVALID, "batch: %s[%lld] is %lld; it must be %lld to %lld", what, (long long)at, (long long)value,
               (long long)low, (long long)high);
  return false;
}

static bool check_counts(const rt_engine *e, const rt_batch *b, int32_t first, int32_t last, rt_status *st) {
  const rt_limits *l = &e->limits;
  return range(st, "the first op", -1, first, 0, e->n_ops) && range(st, "the last op", -1, last, first, e->n_ops) &&
         range(st, "the number of tokens", -1, b->n_tokens, 1, l->max_tokens) &&
         range(st, "the number of sequences", -1, b->n_seqs, 1, l->max_seqs) &&
         range(st, "the number of rows", -1, b->n_rows, 0, l->max_rows) &&
         range(st, "the number of biases", -1, b->n_bias, 0, INT32_MAX) &&
         range(st, "the number of masks", -1, b->n_masks, 0, INT32_MAX) &&
         range(st, "the number of embeddings", -1, b->n_embeddings, 0, INT32_MAX);
}

static bool check_tokens(rt_engine *e, const rt_batch *b, rt_status *st) {
  for (int32_t t = 0; t < b->n_tokens; t++) {
    int32_t token = b->tokens[t], position = b->positions[t];
    if (!range(st, "tokens", t, token, -(int64_t)b->n_embeddings, e->vocab - 1) ||
        !range(st, "positions", t, position, 0, e->last_position) || !range(st, "roles", t, b->roles[t], 0, 1))
      return false;
    e->step.tokens[t] = (rt_token){.token = token, .position = position};
  }
  return true;
}

static bool check_rows(const rt_engine *e, const rt_batch *b, rt_status *st) {
  for (int32_t r = 0, low = 0; r < b->n_rows; low = b->rows[r++])
    if (!range(st, "rows", r, b->rows[r], low, b->n_tokens - 1) ||
        rt_sample_check(&b->sampling[r], r, b->n_bias, b->n_masks, e->limits.histories, st) != RT_OK)
      return false;
  for (int32_t i = 0; i < b->n_bias; i++)
    if (!range(st, "bias_ids", i, b->bias_ids[i], 0, e->vocab - 1)) return false;
  return true;
}

/* A token of a tree names tokens of its sequence's `count` in this step, itself among them; 0 is no tree. */
static bool check_tree(uint64_t tree, int32_t self, int32_t count, int32_t t, rt_status *st) {
  if (tree == 0) return true;
  if (count > 64)
    return rt_fail(st, RT_INVALID, "batch: trees[%d] is set in a sequence of %d new tokens; a tree has at most 64", t, count), false;
  if ((tree >> self & 1) == 0 || (count < 64 && tree >> count != 0))
    return rt_fail(st, RT_INVALID, "batch: trees[%d] is %#llx; it must have bit %d, the token itself, and none from bit %d on", t,
                   (unsigned long long)tree, self, count), false;
  return true;
}

/* A page or state has one writer a step. */
static bool take_page(rt_engine *e, int32_t g, int32_t page, rt_status *st) {
  rt_cache *c = &e->groups[g];
  if (c->writer[page] == e->checks)
    return rt_fail(st, RT_INVALID, "batch: page %d of group %d is written twice in one step; give each writer its own", page, g), false;
  c->writer[page] = e->checks;
  return true;
}

static bool check_state(rt_engine *e, const rt_batch *b, int32_t g, int32_t s, int32_t count, rt_status *st) {
  if (!range(st, "the width of a state's table", -1, b->table_widths[g], 1, INT32_MAX)) return false;
  int32_t slot = b->tables[g][(size_t)s * (size_t)b->table_widths[g]];
  e->step.states[g][s] = slot;
  if (!range(st, "a state's slot", s, slot, 0, e->groups[g].pages - 1)) return false;
  for (int32_t t = b->starts[s]; b->trees && t < b->starts[s] + count; t++)
    if (b->trees[t]) return rt_fail(st, RT_INVALID, "batch: trees[%d] is set; a state takes in one token after another", t), false;
  return count == 0 || take_page(e, g, slot, st);
}

/* What ops [first, last) go on from must be the state after the tokens before this step's; nothing before: zeros, always. Then
 * the states count as those after it, as a step cannot fail from here on. */
static bool check_states(rt_engine *e, const rt_batch *b, int32_t first, int32_t last, bool advance, rt_status *st) {
  for (int32_t i = first, g, layer; i < last; i++) {
    if (!rt_is_recurrent(&e->ops[i], &g, &layer)) continue;
    rt_cache *c = &e->groups[g];
    for (int32_t s = 0; s < b->n_seqs; s++) {
      int32_t count = b->starts[s + 1] - b->starts[s], before = b->kv_lens[s] - count;
      int32_t *seen = &c->seen[(size_t)e->step.states[g][s] * (size_t)c->layers + (size_t)layer];
      if (count == 0) continue;
      if (advance) *seen = b->kv_lens[s];
      else if (before != 0 && *seen != before)
        return rt_fail(st, RT_INVALID, "batch: state %d of group %d has seen %d tokens in layer %d, and sequence %d goes on from %d",
                       e->step.states[g][s], g, *seen, layer, s, before), false;
    }
  }
  return true;
}

/* A block whose page was given back: a token of the step at `low` or later sees none of its slots, as slots are positions
 * in a group with a window. */
static bool is_behind(const rt_cache *c, int32_t block, int32_t low) {
  return c->window > 0 && (int64_t)block * RT_PAGE + RT_PAGE - 1 <= (int64_t)low - c->window;
}

enum rt_path rt_path_of(const rt_engine *e, const rt_batch *b, int32_t token) {
  return (enum rt_path)(b->roles[token] ? e->limits.generated_path : e->limits.prompt_path);
}

/* How many tokens from t on, before `end`, are a tile. */
static int32_t tile_at(const rt_engine *e, const rt_batch *b, int32_t t, int32_t end) {
  int32_t most = e->share ? e->query_rows / e->share : 1, n = 1;
  while (n < most && t + n < end && rt_path_of(e, b, t + n) == rt_path_of(e, b, t)) n++;
  return n;
}

/* Sequence s: its tokens' place in the cache, and its pages. Fills blocks, not yet what is stored in them. */
static bool check_sequence(rt_engine *e, const rt_batch *b, int32_t s, rt_status *st) {
  rt_step *step = &e->step;
  int32_t start = b->starts[s], kv_len = b->kv_lens[s];
  if (!range(st, "starts", s + 1, b->starts[s + 1], start, b->n_tokens) || !range(st, "adapters", s, b->adapters[s], -1, -1) ||
      !range(st, "kv_lens", s, kv_len, b->starts[s + 1] - start, INT32_MAX - RT_PAGE))
    return false;
  for (int32_t g = 0; g < e->n_groups; g++) {
    if (e->groups[g].kind == RT_STATE) continue;
    int64_t most = b->table_widths[g], pages = e->groups[g].pages;
    if (e->groups[g].window == 0 && pages < most) most = pages; /* behind a window there may be any number of blocks */
    if (!range(st, "kv_lens", s, kv_len, 0, most * RT_PAGE)) return false;
  }
  int32_t count = b->starts[s + 1] - start, blocks = (kv_len + RT_PAGE - 1) / RT_PAGE, written = (kv_len - count) / RT_PAGE;
  int32_t base = step->block_starts[s], low = count ? INT32_MAX : kv_len;
  if (rt_room_for_blocks(e, e->n_paged ? (int64_t)base + blocks : 0, st) != RT_OK) return false;
  for (int32_t t = start; t < b->starts[s + 1]; t++) {
    step->tokens[t].sequence = s;
    step->queries[t] = (rt_query){.position = b->positions[t], .tree = b->trees ? b->trees[t] : 0};
    low = b->positions[t] < low ? b->positions[t] : low;
    if (!check_tree(step->queries[t].tree, t - start, b->starts[s + 1] - start, t, st)) return false;
  }
  for (int32_t t = start, n; t < start + count; t += n) {
    n = tile_at(e, b, t, start + count);
    step->tiles[step->n_tiles++] = (rt_tile){s, t, n, kv_len - count, rt_path_of(e, b, t)};
  }
  for (int32_t g = 0; g < e->n_groups; g++) {
    rt_cache *c = &e->groups[g];
    if (c->kind == RT_STATE) {
      if (!check_state(e, b, g, s, count, st)) return false;
      continue;
    }
    for (int32_t i = 0; i < blocks; i++) {
      int32_t page = b->tables[g][(size_t)s * (size_t)b->table_widths[g] + (size_t)i];
      bool gone = page == RT_GONE && i < written && is_behind(c, i, low);
      if (!gone && !range(st, "a block table's page", i, page, 0, c->pages - 1)) return false;
      if (count && i >= written && !take_page(e, g, page, st)) return false;
      step->blocks[g][base + i].page = page;
    }
  }
  step->block_starts[s + 1] = base + (e->n_paged ? blocks : 0);
  step->splits = step->splits > (blocks + RT_SPLIT - 1) / RT_SPLIT ? step->splits : (blocks + RT_SPLIT - 1) / RT_SPLIT;
  for (int32_t i = 0; i < count;) {
    int32_t slot = (kv_len - count + i) % RT_PAGE, here = RT_PAGE - slot < count - i ? RT_PAGE - slot : count - i;
    step->runs[step->n_runs++] =
        (rt_run){.token = start + i, .count = here, .block = base + (kv_len - count + i) / RT_PAGE, .slot = slot};
    i += here;
  }
  return true;
}

static bool check_sequences(rt_engine *e, const rt_batch *b, rt_status *st) {
  rt_step *step = &e->step;
  step->n_runs = step->n_tiles = step->splits = step->block_starts[0] = 0;
  if (++e->checks == 0) {
    for (int32_t g = 0; g < e->n_groups; g++) memset(e->groups[g].writer, 0, (size_t)e->groups[g].pages * sizeof(uint32_t));
    e->checks = 1;
  }
  for (int32_t g = 0; g < e->n_groups; g++)
    if (!range(st, "the width of block table", g, b->table_widths[g], 0, INT32_MAX)) return false;
  if (!range(st, "starts", 0, b->starts[0], 0, 0)) return false;
  for (int32_t s = 0; s < b->n_seqs; s++)
    if (!check_sequence(e, b, s, st)) return false;
  return range(st, "starts", b->n_seqs, b->starts[b->n_seqs], b->n_tokens, b->n_tokens);
}

/* New tokens' positions into their pages' slots; then each block's least and greatest, by which attention passes blocks over.
 * Slots past a sequence's end are empty whatever a page held before: its last block reads a copy that says so. */
static void store_positions(rt_engine *e, const rt_batch *b, int32_t g) {
  rt_cache *c = &e->groups[g];
  rt_step *step = &e->step;
  rt_block *blocks = step->blocks[g];
  for (int32_t i = 0; i < step->n_runs; i++) {
    const rt_run *r = &step->runs[i];
    memcpy(c->positions + (size_t)blocks[r->block].page * RT_PAGE + r->slot, b->positions + r->token,
           (size_t)r->count * sizeof(int32_t));
  }
  for (int32_t s = 0; s < b->n_seqs; s++) {
    for (int32_t i = step->block_starts[s], left = b->kv_lens[s]; left > 0; i++, left -= RT_PAGE) {
      if (blocks[i].page == RT_GONE) {
        blocks[i] = (rt_block){.page = 0, .low = INT32_MAX, .high = -1};
        continue;
      }
      const int32_t *stored = c->positions + (size_t)blocks[i].page * RT_PAGE;
      if (left < RT_PAGE) {
        int32_t *tail = step->tails[g] + (size_t)s * RT_PAGE;
        for (int32_t j = 0; j < RT_PAGE; j++) tail[j] = j < left ? stored[j] : -1;
        stored = tail;
      }
      int32_t low = INT32_MAX, high = -1;
      for (int32_t j = 0; j < RT_PAGE; j++) {
        uint32_t or_large = (uint32_t)stored[j]; /* an empty slot, -1, is never the least */
        low = or_large < (uint32_t)low ? stored[j] : low;
        high = stored[j] > high ? stored[j] : high;
      }
      blocks[i].low = low, blocks[i].high = high, blocks[i].positions = stored;
    }
  }
}

/* rows: the token of each of n lines, or NULL when line i is token i. */
static void order_lines(const rt_batch *b, const int32_t *rows, int32_t n, rt_lines *lines) {
  lines->n = 0;
  for (int32_t generated = 0; generated < 2; generated++) {
    for (int32_t i = 0; i < n; i++)
      if ((b->roles[rows ? rows[i] : i] != 0) == generated) lines->at[lines->n++] = i;
    if (!generated) lines->prompts = lines->n;
  }
}

rt_code rt_step_begin(rt_engine *e, const rt_batch *batch, int32_t first, int32_t last, rt_status *st) {
  if (!check_counts(e, batch, first, last, st) || !check_tokens(e, batch, st) || !check_sequences(e, batch, st) ||
      !check_rows(e, batch, st) || !check_states(e, batch, first, last, false, st) ||
      rt_room_for_splits(e, e->step.splits, st) != RT_OK)
    return st->code;
  check_states(e, batch, first, last, true, st);
  for (int32_t g = 0; g < e->n_groups; g++)
    if (e->groups[g].kind != RT_STATE) store_positions(e, batch, g);
  order_lines(batch, NULL, batch->n_tokens, &e->step.lines[0]);
  order_lines(batch, batch->rows, batch->n_rows, &e->step.lines[1]);
  e->step.batch = batch;
  e->step.first = first;
  return RT_OK;
}
