/* Equal states look equal: grant numbers and lease ids are names, so they are counted anew after every step.
 *
 * Grant numbers are compared with each other only, so those that are left are numbered 1, 2, 3 in their order. Lease ids are
 * compared for equality only, so those of a process are numbered in the order in which they are found.
 */
#ifndef PROCESSES
#define PROCESSES 3
#endif
#define IDS 16 /* of each process: its number times IDS, and 1 to 15 */
#define MOST_SLOTS 160

extern void (*Uerror)(char *);
static uchar *id_slots[MOST_SLOTS], *grant_slots[MOST_SLOTS];
static int id_count, grant_count;

static void ids(uchar *slot) { id_slots[id_count++] = slot; }
static void grants(uchar *slot) { grant_slots[grant_count++] = slot; }

#define COMMANDS(queue) ((Q1 *)Qptr((queue) - 1))
#define LATE_COMMANDS(queue) ((Q4 *)Qptr((queue) - 1))
#define ANSWERS(queue) ((Q7 *)Qptr((queue) - 1))
#define MESSAGES(queue) ((Q10 *)Qptr((queue) - 1))

static void find_slots(void) {
  int p, i;
  id_count = grant_count = 0;
  ids(&now.key);
  grants(&now.grant_g); grants(&now.body_g);
  for (p = 0; p < PROCESSES; p++) {
    ids(&now.line_id[p]);
    ids(&now.P[p].id); ids(&now.P[p].lease_id); ids(&now.P[p].known_as); ids(&now.P[p].granted_as);
    ids(&now.P[p].old_known_as); ids(&now.P[p].old_granted_as); ids(&now.P[p].owes_back); ids(&now.P[p].owes_too);
    grants(&now.P[p].told); grants(&now.P[p].g); grants(&now.P[p].old_g);
    for (i = 0; i < COMMANDS(now.commands[p])->Qlen; i++) {
      ids(&COMMANDS(now.commands[p])->contents[i].fld1); ids(&COMMANDS(now.commands[p])->contents[i].fld4);
      grants(&COMMANDS(now.commands[p])->contents[i].fld2);
    }
    for (i = 0; i < LATE_COMMANDS(now.late[p])->Qlen; i++) {
      ids(&LATE_COMMANDS(now.late[p])->contents[i].fld1); ids(&LATE_COMMANDS(now.late[p])->contents[i].fld4);
      grants(&LATE_COMMANDS(now.late[p])->contents[i].fld2);
    }
    for (i = 0; i < ANSWERS(now.answers[p])->Qlen; i++) {
      ids(&ANSWERS(now.answers[p])->contents[i].fld1);
      grants(&ANSWERS(now.answers[p])->contents[i].fld2);
    }
    for (i = 0; i < MESSAGES(now.messages[p])->Qlen; i++) {
      ids(&MESSAGES(now.messages[p])->contents[i].fld0);
      grants(&MESSAGES(now.messages[p])->contents[i].fld1);
    }
  }
}

static int unused_id(int p) {
  int i, candidate;
  find_slots();
  for (candidate = p * IDS + 1; candidate < (p + 1) * IDS; candidate++) {
    for (i = 0; i < id_count && *id_slots[i] != candidate; i++);
    if (i == id_count) return candidate;
  }
  Uerror("more lease ids than the model has");
  return 0;
}

/* Processes with as many callers are alike, so they are put in an order: which of them is the first makes no difference. */
#ifndef ALIKE /* the first of them */
#define ALIKE 0
#endif

static void swap_bytes(void *a, void *b, int size) {
  uchar kept[256];
  memcpy(kept, a, size); memcpy(a, b, size); memcpy(b, kept, size);
}

static int swapped;

static void swap_processes(int a, int b) {
  int i, owner;
  swapped = 1;
  swap_bytes(&now.P[a], &now.P[b], sizeof now.P[a]);
  swap_bytes(COMMANDS(now.commands[a]), COMMANDS(now.commands[b]), sizeof(Q1));
  swap_bytes(LATE_COMMANDS(now.late[a]), LATE_COMMANDS(now.late[b]), sizeof(Q4));
  swap_bytes(ANSWERS(now.answers[a]), ANSWERS(now.answers[b]), sizeof(Q7));
  swap_bytes(MESSAGES(now.messages[a]), MESSAGES(now.messages[b]), sizeof(Q10));
  swap_bytes(&now.line_id[a], &now.line_id[b], 1);
  swap_bytes(&now.line_callers[a], &now.line_callers[b], 1);
  swap_bytes(&now.hears[a], &now.hears[b], 1);
  find_slots();
  for (i = 0; i < id_count; i++) {
    owner = *id_slots[i] / IDS;
    if (*id_slots[i] && owner == a) *id_slots[i] += (b - a) * IDS;
    else if (*id_slots[i] && owner == b) *id_slots[i] += (a - b) * IDS;
  }
}

/* Compares what does not depend on names. */
static int shape(int p, uchar *to) {
  int i, n = 0;
  struct Process *it = &now.P[p];
  to[n++] = it->dead | it->asked << 1 | it->holds << 2 | it->releases << 3 | it->may_hold << 4 | it->stands << 5 | it->owes_turn << 6;
  to[n++] = it->callers | (it->id != 0) << 4 | (now.line_id[p] != 0) << 5 | (now.key && now.key / IDS == p) << 6;
  to[n++] = it->look_from | it->stood_from << 3 | it->from << 6;
  to[n++] = it->turn_from | it->extend_from << 2 | it->release_from << 4 | now.hears[p] << 7;
  to[n++] = it->run_from;
  to[n++] = it->is_claim | it->turns_left << 1 | it->run_is_claim << 2 | it->release_names_next << 3 | it->owes_release << 4 | (it->owes_back != 0) << 5 | (it->owes_too != 0) << 6;
  to[n++] = COMMANDS(now.commands[p])->Qlen | ANSWERS(now.answers[p])->Qlen << 2 | MESSAGES(now.messages[p])->Qlen << 4 | LATE_COMMANDS(now.late[p])->Qlen << 6;
  for (i = 0; i < COMMANDS(now.commands[p])->Qlen; i++) to[n++] = COMMANDS(now.commands[p])->contents[i].fld0;
  for (i = 0; i < ANSWERS(now.answers[p])->Qlen; i++) to[n++] = ANSWERS(now.answers[p])->contents[i].fld0 | ANSWERS(now.answers[p])->contents[i].fld5 << 4;
  for (i = 0; i < LATE_COMMANDS(now.late[p])->Qlen; i++) to[n++] = LATE_COMMANDS(now.late[p])->contents[i].fld0;
  to[n++] = it->told; to[n++] = it->g; to[n++] = it->t; to[n++] = it->old_g; to[n++] = it->old_t;
  return n;
}

static int in_order(int a, int b) {
  uchar shapes[2][64];
  memset(shapes, 0, sizeof shapes);
  shape(a, shapes[0]); shape(b, shapes[1]);
  return memcmp(shapes[0], shapes[1], sizeof shapes[0]) <= 0;
}

static void put_in_order(void) {
#ifndef NAMED
  int i, j;
  for (i = ALIKE; i < PROCESSES; i++)
    for (j = PROCESSES - 1; j > i; j--) if (!in_order(j - 1, j)) swap_processes(j - 1, j);
#endif
}

static void number_anew(void);

#ifdef STORY
#include "story.h"
#endif

/* What makes no difference any more is taken away: it would only be many states instead of one. */
#define REMOVE(queue, i) \
  memmove(&(queue)->contents[i], &(queue)->contents[(i) + 1], ((queue)->Qlen - (i) - 1) * sizeof(queue)->contents[0]); \
  memset(&(queue)->contents[--(queue)->Qlen], 0, sizeof(queue)->contents[0])

static int names(Q1 *queue, int before, int id) {
  int i;
  for (i = 0; i < before; i++) if (queue->contents[i].fld1 == id || queue->contents[i].fld4 == id) return 1;
  return 0;
}

static int is_named_by_message(int p, int id) {
  int i;
  for (i = 0; i < MESSAGES(now.messages[p])->Qlen; i++) if (MESSAGES(now.messages[p])->contents[i].fld0 == id) return 1;
  return 0;
}

/* Whether nothing that is on its way, or at the server, can be of this id any more. */
static int is_gone(int p, int id) {
  struct Process *it = &now.P[p];
  Q1 *commands = (Q1 *)COMMANDS(now.commands[p]), *late = (Q1 *)LATE_COMMANDS(now.late[p]);
  return now.key != id && now.line_id[p] != id && !names(commands, commands->Qlen, id) && !names(late, late->Qlen, id)
      && it->id != id && !(it->holds && (it->lease_id == id || it->known_as == id || it->granted_as == id));
}

/* While there is no key, the next one is given its time after every moment that there is by then; and the end of a claim ends
 * claims only, while the next time that the key is given is after all those moments too. */
#define BEFORE_ALL(moment) if ((moment) == 1) (moment) = 2

static void forget_order(int p) {
  struct Process *it = &now.P[p];
  int is_whole = now.key_length == 2;
  if (is_whole) return;
  BEFORE_ALL(it->turn_from);
  BEFORE_ALL(it->extend_from);
  if (!now.key || !it->is_claim) BEFORE_ALL(it->from);
  if (!now.key || !it->run_is_claim) BEFORE_ALL(it->run_from);
  if (now.key) return;
  BEFORE_ALL(it->look_from);
  BEFORE_ALL(it->stood_from);
  BEFORE_ALL(it->release_from);
}

#ifdef FORGETS_PAST
/* Of a grant that is over nothing matters but that it is not the one of now, unless another of the same id is told of. Not for
 * extensions, and not for the rule that tokens rise. */
#define IS_PAST(grant) ((grant) && (!now.key || (grant) != now.grant_g))

static int is_told_of(int p, int id) {
  int i;
  for (i = 0; i < ANSWERS(now.answers[p])->Qlen; i++) if (ANSWERS(now.answers[p])->contents[i].fld0 == 6 && ANSWERS(now.answers[p])->contents[i].fld1 == id) return 1;
  return is_named_by_message(p, id);
}

static void forget_past(int p) {
  int i;
  struct Process *it = &now.P[p];
  Q1 *commands = (Q1 *)COMMANDS(now.commands[p]), *late = (Q1 *)LATE_COMMANDS(now.late[p]);
  Q7 *answers = ANSWERS(now.answers[p]);
  for (i = 0; i < commands->Qlen; i++) if (IS_PAST(commands->contents[i].fld2)) commands->contents[i].fld2 = 0;
  for (i = 0; i < late->Qlen; i++) if (IS_PAST(late->contents[i].fld2)) late->contents[i].fld2 = 0;
  for (i = 0; i < answers->Qlen; i++) {
    int id = answers->contents[i].fld1;
    if (answers->contents[i].fld0 == 6 && it->asked && id == it->id && IS_PAST(answers->contents[i].fld2) && !is_named_by_message(p, id))
      answers->contents[i].fld2 = 0;
  }
  if (IS_PAST(it->g) && !is_told_of(p, it->lease_id) && !is_told_of(p, it->known_as) && !is_told_of(p, it->granted_as)) it->g = 0;
  if (IS_PAST(it->old_g) && !is_told_of(p, it->old_known_as) && !is_told_of(p, it->old_granted_as)) it->old_g = 0;
}
#endif

static void prune(int p) {
  int i;
  struct Process *it = &now.P[p];
  Q1 *commands = (Q1 *)COMMANDS(now.commands[p]), *late = (Q1 *)LATE_COMMANDS(now.late[p]);
  Q7 *answers = ANSWERS(now.answers[p]);
  Q10 *messages = MESSAGES(now.messages[p]);
  if (it->may_hold) it->stands = 0;           /* one of them is enough to give the place back */
  if (it->stood_from == 3) it->stood_from = 0; /* a claim that is over is as good as none */
  for (i = 0; i < messages->Qlen; i++) {
    if (is_gone(p, messages->contents[i].fld0)) {
      REMOVE(messages, i); /* of what is over, with nothing left to give back */
      i--;
    }
  }
  /* `told` is compared with grants of which messages are on their way; those of later messages are larger. */
  if (it->told && !is_named_by_message(p, it->id)) it->told = 0;
  for (i = 0; i < answers->Qlen; i++) {
    int kind = answers->contents[i].fld0, id = answers->contents[i].fld1;
    if (kind == 6 && is_gone(p, id)
        || kind == 7 && (!it->asked || id != it->id)
        || kind == 3 && !(it->holds && it->turn_from && id == it->lease_id)
        || kind == 2 && !(it->holds && it->extend_from && answers->contents[i].fld2 == it->g && answers->contents[i].fld3 == it->t)) {
      REMOVE(answers, i); /* of what is over: it is not listened to */
      i--;
    } else if (kind == 7 && !is_named_by_message(p, id)) answers->contents[i].fld2 = 0;
  }
  for (i = 0; i < commands->Qlen; i++) {
    int id = commands->contents[i].fld1;
    if (commands->contents[i].fld0 == 5 && now.key != id && now.line_id[p] != id && !names(commands, i, id) && !names(late, late->Qlen, id)) {
      REMOVE(commands, i); /* gives back what is not there */
      i--;
    }
  }
}

static void tidy(void) {
  int p;
  for (p = 0; p < PROCESSES; p++) {
    prune(p);
    forget_order(p);
  }
#ifdef FORGETS_PAST
  now.body_g = now.body_t = 0;
  for (p = 0; p < PROCESSES; p++) forget_past(p);
#endif
  swapped = 0;
  number_anew();
  put_in_order();
  if (swapped) number_anew();
#ifdef STORY
  story();
#endif
}

static void number_anew(void) {
  uchar new_name[256] = {0}, seen[256] = {0}, ids_of[PROCESSES] = {0};
  int i, value, rank = 0;
  find_slots();
  for (i = 0; i < id_count; i++) {
    value = *id_slots[i];
    if (value && !new_name[value]) new_name[value] = (value / IDS) * IDS + ++ids_of[value / IDS];
  }
  for (i = 0; i < id_count; i++) *id_slots[i] = new_name[*id_slots[i]];
  for (i = 0; i < grant_count; i++) seen[*grant_slots[i]] = 1;
  for (value = 1; value < 256; value++) if (seen[value]) seen[value] = ++rank;
  for (i = 0; i < grant_count; i++) if (*grant_slots[i]) *grant_slots[i] = seen[*grant_slots[i]];
}
