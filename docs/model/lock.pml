/* One lock, three processes, the protocol of locks/: see README.md beside this file.
 *
 * What stands for what: a grant number `g` and the turn `t` within its run are the fencing token (larger g, then larger
 * t); `grant_fence` is g alone. A lease id is a small number that tells its process, and is used again once nobody knows it.
 */

/* ---- how much of everything; each can be given with spin -D ---- */
#define N 3
#ifndef CALLERS0 /* callers at once in each process, its holder among them: two make runs of two turns */
#define CALLERS0 1
#endif
#ifndef CALLERS1
#define CALLERS1 1
#endif
#ifndef CALLERS2
#define CALLERS2 1
#endif
#ifndef EXTENDS /* whether leases are extended */
#define EXTENDS 0
#endif
#ifndef DEATHS /* at most so many processes die */
#define DEATHS 0
#endif
#ifndef LOSSES /* at most so many connections of commands are lost */
#define LOSSES 0
#endif
#ifndef LATE /* what a lost connection held may be carried out at any later time */
#define LATE 1
#endif
#ifndef MUTES /* at most so many connections of messages are lost */
#define MUTES 0
#endif
#ifndef WINDOW /* commands on their way, and answers on their way, at most */
#define WINDOW 2
#endif
#ifndef LOOKS /* a look is sent while fewer than so many are on their way */
#define LOOKS WINDOW
#endif
#ifndef HEARS /* messages on their way to one process at most */
#define HEARS 2
#endif
#ifndef GIVEUPS /* at most so many callers give up */
#define GIVEUPS 0
#endif
#ifndef EARLY /* so often a holder's clock says that its lease is over, long before the key ends */
#define EARLY 0
#endif
#ifndef SILENCES /* so often one that waits is taken out of the line, since it shows no sign of life */
#define SILENCES 0
#endif
#ifndef GOES_QUIET /* from some moment on nothing goes wrong and nobody comes: then everybody who waits has a turn */
#define GOES_QUIET 0
#endif

/* ---- the rule, and what happens without a part of it ---- */
#ifdef BY_ID_ALONE /* the whole rule */
#define EXTEND_BY_ID
#define TURN_BY_ID
#define RELEASE_BY_ID
#define MESSAGE_BY_ID
#endif

/* Three faults that the model showed: FORGETS_ITS_RUN, a grant that is told of once more is given back where the turn that is on goes
 * by an id of its own already; NEXT_IS_NOT_OWED, nobody gives back what a release, whose answer was lost, has granted;
 * LOOK_IS_NOT_OWED, nor what a look has that was out of date when its connection was lost. */

/* Each rule of its own ends the search where it is broken; with this only two holders at once do. */
#ifdef ONLY_TWO_HOLDERS
#define rule(condition) skip
#else
#define rule(condition) assert(condition)
#endif

#ifdef FORGETS_PAST /* fewer states: see tidy.h, which is to be told of it too */
#define tokens_rise(condition) skip
#else
#define tokens_rise(condition) rule(condition)
#endif

/* ---- time ---- */
/* A lease is counted from a moment. No clock: only whether the moment was before the time that the key has now was given,
 * and whether the lease that is counted from it is over. It may be over at any time; where the key ends, every lease that was
 * counted from an earlier moment, and is no longer than the key's, is over before. */
#define NONE 0
#define AFTER 1  /* the key has its time from before this moment */
#define BEFORE 2 /* the key has been given its time since */
#define OVER 3
#define LAPSED 4 /* a claim that is counted from it is over, a whole lease is not */
#define as_claim(moment) (moment == LAPSED -> OVER : moment)
#define as_whole(moment) (moment == LAPSED -> BEFORE : moment)
#define CLAIM 1
#define WHOLE 2

/* ---- commands and answers ---- */
#define LOOK 1
#define EXTEND 2
#define TURN 3
#define RELEASE 4
#define GIVE_BACK 5 /* a release that names no token */
#define GRANTED 6
#define REFUSED 7
#define DONE 1  /* answers of extend and turn; a release: freed, or handed over */
#define TAKEN 2
#define DELETED 3
#define NOT_OURS 4
#define NEXT_IS_OURS 5
#define IN_LINE 6

chan commands[N] = [WINDOW] of {byte, byte, byte, byte, byte, byte}; /* kind, id, g, t, next id, callers */
chan late[N] = [WINDOW] of {byte, byte, byte, byte, byte, byte};     /* the same, of a connection that is lost */
chan answers[N] = [WINDOW + 2] of {byte, byte, byte, byte, byte, byte};  /* kind, id, g, t, turns, outcome */
chan messages[N] = [HEARS] of {byte, byte, byte};                    /* granted: id, g, turns */

typedef Process {
  bool dead;
  byte callers;        /* that wait */
  byte id;             /* of the line: what the next grant will be known by; 0: nobody waits */
  bool may_hold;       /* the id has been sent */
  bool stands;
  bool asked;          /* a look of this id is on its way */
  byte look_from;      /* moments, as above */
  byte stood_from;
  byte told;           /* grants since then are larger */
  /* the lease that is held */
  bool holds;
  byte lease_id, known_as, granted_as, g, t, from; /* granted_as: its run's, by which old looks go */
  bool is_claim;
  byte turns_left, run_from;
  bool run_is_claim;
  byte turn_from;      /* when it was told that this turn is on; NONE: not on its way */
  byte extend_from;
  /* the lease that is being given back */
  bool releases, release_names_next;
  byte old_known_as, old_granted_as, old_g, old_t, release_from;
  /* to be sent again on a new connection */
  bool owes_release, owes_turn;
  byte owes_back, owes_too;
}
Process P[N];

/* ---- the server ---- */
byte key, key_length;                 /* lock:{NAME}: id, and what it was given */
byte grant_g, grant_t, grant_turns;   /* lock-grant:{NAME}; its id counts only while it is the key's */
byte line_id[N], line_callers[N];     /* lock-queue, lock-waiters; 0: does not stand in line. Order: any */
bool hears[N] = true;                 /* what PUBLISH counts */

byte body_g, body_t;                  /* ghost: the largest token that a body was given */
byte deaths, losses, mutes, giveups, early, silences;
bool quiet;
byte kind, id, g, t, next, count, who, outcome; /* between the statements of one step; else 0 */

c_code { \#include "tidy.h" };

#define callers_at_most(p) ((p) == 0 -> CALLERS0 : ((p) == 1 -> CALLERS1 : CALLERS2))
#define everybody_had_a_turn (P[0].callers == 0 && P[1].callers == 0 && P[2].callers == 0 && !P[0].holds && !P[1].holds && !P[2].holds)
/* A lease that nobody holds ends by itself only where its process is dead. */
#ifdef NO_ORPHANS
#define no_orphan assert(P[owner(key)].dead)
#else
#define no_orphan skip
#endif
#define believes(p) (P[p].holds && P[p].from != OVER)
#define owner(an_id) ((an_id) / 16)
#define on_way(p) (len(commands[p]) + len(answers[p]))
#define room(p) (len(commands[p]) < WINDOW)
#define may_send(p) (on_way(p) < WINDOW)
#define may_look(p) (on_way(p) < LOOKS)

/* Every step ends so: nothing is left between steps, and equal states look equal. */
inline end_of_step() {
  kind = 0; id = 0; g = 0; t = 0; next = 0; count = 0; who = 0; outcome = 0;
  c_code { tidy(); };
  assert(!(believes(0) && believes(1)) && !(believes(0) && believes(2)) && !(believes(1) && believes(2)));
}

/* The key is given a time now. */
inline age(p) {
  P[p].look_from = (P[p].look_from == AFTER -> BEFORE : P[p].look_from);
  P[p].stood_from = (P[p].stood_from == AFTER -> BEFORE : P[p].stood_from);
  P[p].from = (P[p].from == AFTER -> BEFORE : P[p].from);
  P[p].run_from = (P[p].run_from == AFTER -> BEFORE : P[p].run_from);
  P[p].turn_from = (P[p].turn_from == AFTER -> BEFORE : P[p].turn_from);
  P[p].extend_from = (P[p].extend_from == AFTER -> BEFORE : P[p].extend_from);
  P[p].release_from = (P[p].release_from == AFTER -> BEFORE : P[p].release_from);
}
inline give_time(length) { key_length = length; age(0); age(1); age(2); }

/* The key's time is over. */
inline lapse(p) {
  P[p].stood_from = (P[p].stood_from == BEFORE -> OVER : P[p].stood_from);
  P[p].from = (P[p].from == BEFORE && (key_length == WHOLE || P[p].is_claim) -> OVER : P[p].from);
  P[p].run_from = (P[p].run_from == BEFORE && (key_length == WHOLE || P[p].run_is_claim) -> OVER : P[p].run_from);
  if
  :: key_length == WHOLE ->
     P[p].look_from = (P[p].look_from > AFTER -> OVER : P[p].look_from);
     P[p].turn_from = (P[p].turn_from == BEFORE -> OVER : P[p].turn_from);
     P[p].extend_from = (P[p].extend_from == BEFORE -> OVER : P[p].extend_from);
     P[p].release_from = (P[p].release_from > AFTER -> OVER : P[p].release_from)
  :: else ->
     P[p].look_from = (P[p].look_from == BEFORE -> LAPSED : P[p].look_from);
     P[p].release_from = (P[p].release_from == BEFORE -> LAPSED : P[p].release_from)
  fi
}
inline no_key() { key = 0; key_length = 0; grant_t = 0; grant_turns = 0 }
inline expire() { lapse(0); lapse(1); lapse(2); no_key() }

/* ---- scripts ---- */
inline make_grant(an_id, length, turns) {
  grant_g++; grant_t = 0; grant_turns = turns; key = an_id; give_time(length)
}
#define is_by_turn(an_id, a_t) (key == (an_id) || grant_t < (a_t))
#define is_held_grant(an_id, a_g, a_t) (key != 0 && grant_g == (a_g) && is_by_turn(an_id, a_t))
#ifdef EXTEND_BY_ID
#define extend_finds(an_id, a_g, a_t) (key != 0 && key == (an_id))
#else
#define extend_finds(an_id, a_g, a_t) is_held_grant(an_id, a_g, a_t)
#endif
#ifdef TURN_BY_ID /* `before`, the id of the turn before this one, is all that is asked for */
#define turn_finds(before, an_id, a_g, a_t) (key != 0 && (key == (before) || key == (an_id)))
#else
#define turn_finds(before, an_id, a_g, a_t) is_held_grant(an_id, a_g, a_t)
#endif
#ifdef RELEASE_BY_ID
#define release_finds(an_id, a_g, a_t) (key != 0 && key == (an_id))
#else
#define release_finds(an_id, a_g, a_t) is_held_grant(an_id, a_g, a_t)
#endif
/* What ends a grant, ends none that somebody believes in. */
#define nobody_believes_in_it (!(believes(0) && P[0].g == grant_g) && !(believes(1) && P[1].g == grant_g) && !(believes(2) && P[2].g == grant_g))

#define others_stand(p) ((p != 0 && line_id[0]) || (p != 1 && line_id[1]) || (p != 2 && line_id[2]))

inline answer(p, is_late, a_kind, an_id, a_g, a_t, a_count, an_outcome) {
  if
  :: is_late || P[p].dead
  :: else -> answers[p]!a_kind, an_id, a_g, a_t, a_count, an_outcome
  fi
}

inline stand(p, an_id, a_count) { line_id[p] = an_id; line_callers[p] = a_count }
inline drop(p) { line_id[p] = 0; line_callers[p] = 0 }

#define may_be_offered(p, to) (line_id[to] && hears[to] && (P[to].dead || len(messages[to]) < HEARS) && !(next && p == to))

/* pass_on: to another that stands in line and hears (`first`, where there is a choice), to the caller's own next (first is N),
 * or to nobody. `many`: for a run of two turns, where there are callers. */
inline pass_on(p, is_late, first, many) {
  rule(nobody_believes_in_it);
  no_key();
  if
  :: first == 0 && may_be_offered(p, 0) -> who = 0
  :: first == 1 && may_be_offered(p, 1) -> who = 1
  :: first == 2 && may_be_offered(p, 2) -> who = 2
  :: else ->
     if
     :: next -> who = N
     :: !next && may_be_offered(p, 0) -> who = 0
     :: !next && !may_be_offered(p, 0) && may_be_offered(p, 1) -> who = 1
     :: !next && !may_be_offered(p, 0) && !may_be_offered(p, 1) && may_be_offered(p, 2) -> who = 2
     :: else -> who = N + 1
     fi
  fi;
  if
  :: who == N ->
     drop(p);
     count = (many && count > 1 -> 2 : 1);
     make_grant(next, WHOLE, count);
     answer(p, is_late, RELEASE, next, grant_g, 0, count, NEXT_IS_OURS)
  :: who == N + 1 -> /* those that stand do not hear */
     drop(0); drop(1); drop(2);
     if
     :: kind == RELEASE -> answer(p, is_late, RELEASE, 0, 0, 0, 0, DONE)
     :: else
     fi
  :: who < N -> /* a claim, and a message under the name of whoever stands there */
     t = (many && line_callers[who] > 1 -> 2 : 1);
     make_grant(line_id[who], CLAIM, t);
     if
     :: P[who].dead
     :: else -> messages[who]!line_id[who], grant_g, t
     fi;
     drop(who);
     if
     :: next -> stand(p, next, count)
     :: else
     fi;
     if
     :: kind == RELEASE -> answer(p, is_late, RELEASE, 0, 0, 0, 0, (next -> IN_LINE : DONE))
     :: else
     fi
  fi
}

/* Carries one command out. `refuses`: a free lock is kept for another that stands in line. */
inline carry_out(p, is_late, first, many, refuses) {
  if
  :: kind == LOOK && key == id ->
     give_time(WHOLE);
     answer(p, is_late, GRANTED, id, grant_g, grant_t, grant_turns - grant_t, 0)
  :: kind == LOOK && key == 0 && !(refuses && others_stand(p)) ->
     make_grant(id, WHOLE, 1);
     drop(p);
     answer(p, is_late, GRANTED, id, grant_g, 0, 1, 0)
  :: kind == LOOK && key != id && (key != 0 || (refuses && others_stand(p))) ->
     stand(p, id, count);
     answer(p, is_late, REFUSED, id, grant_g, 0, 0, 0)
  :: kind == EXTEND ->
     if
     :: extend_finds(id, g, t) ->
        rule(grant_g == g && grant_t <= t); /* no extension of an earlier grant acts on a later one */
        give_time(WHOLE);
        answer(p, is_late, EXTEND, 0, g, t, 0, DONE)
     :: else -> answer(p, is_late, EXTEND, 0, g, t, 0, (key -> TAKEN : DELETED))
     fi
  :: kind == TURN ->
     if
     :: turn_finds(next, id, g, t) ->
        rule(grant_g == g && grant_t <= t);
        grant_g = g; grant_t = t; key = id;
        give_time(WHOLE);
        answer(p, is_late, TURN, id, 0, 0, 0, DONE)
     :: else -> answer(p, is_late, TURN, id, 0, 0, 0, (key -> TAKEN : DELETED))
     fi
  :: kind == RELEASE || kind == GIVE_BACK ->
     if
     :: (kind == RELEASE && release_finds(id, g, t)) || (kind == GIVE_BACK && key == id) ->
        rule(kind == GIVE_BACK || (grant_g == g && grant_t <= t));
        t = 0;
        pass_on(p, is_late, first, many)
     :: else ->
        if
        :: line_id[p] == id -> drop(p)
        :: else
        fi;
        if
        :: kind == RELEASE -> answer(p, is_late, RELEASE, 0, 0, 0, 0, NOT_OURS)
        :: else
        fi
     fi
  fi
}

#define head_is(queue, a_kind) queue?[a_kind, _, _, _, _, _]
#define hears_answers(p) (len(answers[p]) < WINDOW + 2) /* so many are never on their way but where it is lost again and again */
#define is_release(queue) (head_is(queue, RELEASE) || head_is(queue, GIVE_BACK))
#define step(guard, queue, p, is_late, first, many, refuses) \
  d_step { guard -> queue?kind, id, g, t, next, count; carry_out(p, is_late, first, many, refuses); end_of_step() }
#define steps(queue, p, is_late) \
  :: step(len(queue) && hears_answers(p) && !is_release(queue), queue, p, is_late, 0, 0, 0) \
  :: step(head_is(queue, LOOK) && hears_answers(p) && key == 0 && others_stand(p) && !quiet, queue, p, is_late, 0, 0, 1) \
  :: step(is_release(queue) && hears_answers(p), queue, p, is_late, 0, 0, 0) \
  :: step(is_release(queue) && hears_answers(p), queue, p, is_late, 1, 0, 0) \
  :: step(is_release(queue) && hears_answers(p), queue, p, is_late, 2, 0, 0) \
  :: step(is_release(queue) && hears_answers(p), queue, p, is_late, N, 0, 0)
#define steps_of_runs(queue, p, is_late) \
  :: step(is_release(queue) && hears_answers(p), queue, p, is_late, 0, 1, 0) \
  :: step(is_release(queue) && hears_answers(p), queue, p, is_late, 1, 1, 0) \
  :: step(is_release(queue) && hears_answers(p), queue, p, is_late, 2, 1, 0) \
  :: step(is_release(queue) && hears_answers(p), queue, p, is_late, N, 1, 0)

active proctype Server() {
end:
  do
  steps(commands[0], 0, false)
  steps(commands[1], 1, false)
  steps(commands[2], 2, false)
#if CALLERS0 > 1 || CALLERS1 > 1 || CALLERS2 > 1
  steps_of_runs(commands[0], 0, false)
  steps_of_runs(commands[1], 1, false)
  steps_of_runs(commands[2], 2, false)
#endif
#if LOSSES && LATE
  steps(late[0], 0, true)
  steps(late[1], 1, true)
  steps(late[2], 2, true)
  :: d_step { len(late[0]) -> late[0]?kind, id, g, t, next, count; end_of_step() }
  :: d_step { len(late[1]) -> late[1]?kind, id, g, t, next, count; end_of_step() }
  :: d_step { len(late[2]) -> late[2]?kind, id, g, t, next, count; end_of_step() }
#endif
  :: d_step { key && !quiet -> expire(); end_of_step() }
#if GOES_QUIET
  :: d_step { !quiet -> quiet = true; end_of_step() }
  /* Only where nothing else goes on: a lease that its holder lives to give back does not run out. */
  :: d_step { timeout && quiet && key -> no_orphan; expire(); end_of_step() }
  :: d_step { timeout && quiet && !everybody_had_a_turn && key == 0 -> assert(false) } /* somebody waits for ever */
#endif
  od
}

/* ---- a process ---- */
inline new_line_id(p) { c_code { now.P[now.who].id = unused_id(now.who); } }

inline forget_line(p) {
  P[p].id = 0; P[p].may_hold = false; P[p].stands = false; P[p].asked = false; P[p].look_from = NONE;
  P[p].stood_from = NONE; P[p].told = 0; P[p].turns_left = 0; P[p].run_from = NONE; P[p].run_is_claim = false;
  P[p].release_names_next = false
}
inline give_back(p, an_id) { commands[p]!GIVE_BACK, an_id, 0, 0, 0, 0 }

/* Nobody waits here any more. */
inline leave_line(p) {
  if
  :: P[p].may_hold || P[p].stands -> give_back(p, P[p].id)
  :: else
  fi;
  forget_line(p)
}

inline begin(p) {
  tokens_rise(P[p].g > body_g || (P[p].g == body_g && P[p].t > body_t)); /* tokens given to bodies rise */
  body_g = P[p].g; body_t = P[p].t
}

inline end_lease(p) {
  P[p].holds = false; P[p].lease_id = 0; P[p].known_as = 0; P[p].granted_as = 0; P[p].g = 0; P[p].t = 0; P[p].from = NONE; P[p].is_claim = false;
  P[p].turns_left = 0; P[p].run_from = NONE; P[p].run_is_claim = false; P[p].turn_from = NONE; P[p].extend_from = NONE;
  P[p].owes_turn = false
}

/* Line._grant: the first waiter has it, by the id of the line. g, t, count: token and turns. */
inline grant(p, a_from, by_claim) {
  assert(!believes(p));
  end_lease(p);
  P[p].holds = true; P[p].lease_id = P[p].id; P[p].known_as = P[p].id; P[p].granted_as = P[p].id; P[p].g = g; P[p].t = t;
  P[p].from = a_from; P[p].is_claim = by_claim;
  P[p].callers--;
  begin(p);
  if
  :: P[p].callers ->
     if
     :: count > 1 -> P[p].turns_left = 1; P[p].run_from = a_from; P[p].run_is_claim = by_claim
     :: else
     fi;
     P[p].may_hold = false; P[p].stands = false; P[p].asked = false; P[p].look_from = NONE;
     new_line_id(p)
  :: else -> forget_line(p)
  fi
}

/* Gives a lease back that is over, or may be. Where one is on its way already, by its id alone. */
inline send_release(p, a_next, a_count) {
  P[p].releases = true; P[p].old_known_as = P[p].known_as; P[p].old_granted_as = P[p].granted_as; P[p].old_g = P[p].g; P[p].old_t = P[p].t;
  P[p].release_from = (a_next -> AFTER : NONE); P[p].release_names_next = (a_next != 0);
#ifndef NEXT_IS_NOT_OWED
  P[p].may_hold = P[p].may_hold || a_next != 0;
#endif
  commands[p]!RELEASE, P[p].known_as, P[p].g, P[p].t, a_next, a_count;
}
inline lose(p, is_taken) {
  if
  :: is_taken && !P[p].releases -> send_release(p, 0, 0)
  :: is_taken && P[p].releases -> give_back(p, P[p].granted_as)
  :: else
  fi;
  end_lease(p)
}

#define goes_by(p, an_id) ((an_id) == P[p].lease_id || (an_id) == P[p].known_as || (an_id) == P[p].granted_as)

/* Lines.granted_to_nobody: the grant of the lease that is here, told of once more, or one that nobody here goes by. */
#ifdef FORGETS_ITS_RUN
#define is_here(p) (P[p].holds && (id == P[p].lease_id || id == P[p].known_as))
#else
#define is_here(p) (P[p].holds && (goes_by(p, id) || g == P[p].g))
#endif
#define is_ending(p) (P[p].releases && (id == P[p].old_known_as || id == P[p].old_granted_as) && g <= P[p].old_g)
inline nobody(p) {
  if
  :: id == P[p].id || (is_here(p) && g <= P[p].g) || (!is_here(p) && is_ending(p))
  :: id != P[p].id && is_here(p) && g > P[p].g -> lose(p, true)
  :: else -> give_back(p, id)
  fi
}

#ifdef CLAIM_FROM_HEARING
#define claim_from(p) (P[p].stood_from -> AFTER : OVER)
#else
#define claim_from(p) P[p].stood_from
#endif
#ifdef MESSAGE_BY_ID
#define is_new(p) true
#else
#define is_new(p) (g > P[p].told)
#endif

/* `looks`: it is too late, or the first caller wants a whole lease. */
inline granted_by_message(p, looks) {
  count = t; t = 0; /* a message names the run's first token, and the number of turns */
  if
  :: id != P[p].id -> nobody(p)
  :: else ->
     kind = claim_from(p);
     if
     :: !looks && P[p].callers && is_new(p) && kind != NONE && kind != OVER -> grant(p, kind, true); tell(p)
     :: else
     fi
  fi
}

/* The server is to know whose turn it is. */
inline tell(p) {
  commands[p]!TURN, P[p].lease_id, P[p].g, P[p].t, P[p].known_as, 0;
  P[p].turn_from = AFTER;
  P[p].known_as = P[p].lease_id
}

/* `too_late`: by the process' own clock, what is granted is over. */
inline hear_answer(p, too_late) {
  if
  :: kind == GRANTED ->
     if
     :: P[p].asked && id == P[p].id ->
        P[p].asked = false;
        if
        :: !too_late && P[p].look_from != OVER -> outcome = as_whole(P[p].look_from); grant(p, outcome, false)
        :: else -> P[p].look_from = NONE /* asked for again */
        fi
     :: else -> nobody(p)
     fi
  :: kind == REFUSED ->
     if
     :: P[p].asked && id == P[p].id ->
        P[p].asked = false; P[p].stands = true; P[p].stood_from = as_claim(P[p].look_from); P[p].look_from = NONE;
        P[p].told = (g > P[p].told -> g : P[p].told)
     :: else
     fi
  :: kind == EXTEND ->
     if
     :: P[p].holds && P[p].extend_from && g == P[p].g && t == P[p].t ->
        if
        :: outcome == DONE -> P[p].from = P[p].extend_from; P[p].is_claim = false; P[p].extend_from = NONE
        :: outcome == TAKEN -> lose(p, true)
        :: outcome == DELETED -> lose(p, false)
        fi
     :: else
     fi
  :: kind == TURN ->
     if
     :: P[p].holds && P[p].turn_from && id == P[p].lease_id ->
        if
        :: outcome == DONE ->
           P[p].from = P[p].turn_from; P[p].is_claim = false;
           if
           :: P[p].turns_left -> P[p].run_from = P[p].turn_from; P[p].run_is_claim = false
           :: else
           fi;
           P[p].turn_from = NONE
        :: outcome == TAKEN -> lose(p, true)
        :: outcome == DELETED -> lose(p, false)
        fi
     :: else
     fi
  :: kind == RELEASE ->
     if
     :: outcome == NEXT_IS_OURS ->
        kind = P[p].release_from;
        end_release(p);
        if
        :: id == P[p].id && P[p].callers ->
           if
           :: !too_late && kind != OVER -> kind = as_whole(kind); grant(p, kind, false)
           :: else
           fi
        :: else -> nobody(p)
        fi
     :: outcome == IN_LINE ->
        if
        :: P[p].release_names_next && P[p].callers ->
           P[p].stands = true; P[p].stood_from = as_claim(P[p].release_from);
           P[p].told = (P[p].old_g > P[p].told -> P[p].old_g : P[p].told)
        :: else
        fi;
        end_release(p)
     :: outcome == NOT_OURS -> give_back(p, P[p].old_granted_as); end_release(p)
     :: outcome == DONE -> end_release(p)
     fi
  fi
}
inline end_release(p) {
  P[p].releases = false; P[p].release_names_next = false; P[p].old_known_as = 0; P[p].old_granted_as = 0; P[p].old_g = 0; P[p].old_t = 0;
  P[p].release_from = NONE; P[p].owes_release = false
}

#ifdef LOOK_IS_NOT_OWED
#define look_is_owed(p) false
#else
#define look_is_owed(p) (id != P[p].id)
#endif

inline owe(p) {
  if
  :: P[p].owes_back == 0 || P[p].owes_back == id -> P[p].owes_back = id
  :: else -> assert(P[p].owes_too == 0 || P[p].owes_too == id); P[p].owes_too = id
  fi
}

/* The connection is lost: what is on its way may be carried out later, or never; what is owed is sent again. */
inline lose_commands(p) {
  do
  :: commands[p]?kind, id, g, t, next, count ->
     if
     :: kind == GIVE_BACK || (kind == LOOK && look_is_owed(p)) -> owe(p)
     :: else
     fi;
#if LATE
     if
     :: nfull(late[p]) -> late[p]!kind, id, g, t, next, count
     :: full(late[p])
     fi
#endif
  :: empty(commands[p]) -> break
  od;
  do
  :: answers[p]?kind, id, g, t, next, count ->
     if
     :: kind == GRANTED && look_is_owed(p) -> owe(p)
     :: else
     fi
  :: empty(answers[p]) -> break
  od;
  P[p].asked = false; P[p].look_from = NONE; P[p].extend_from = NONE;
  P[p].owes_release = P[p].releases;
  P[p].release_names_next = false; P[p].release_from = NONE;
  P[p].owes_turn = (P[p].turn_from != NONE)
}

inline die(p) {
  do
  :: answers[p]?kind, id, g, t, next, count
  :: messages[p]?id, g, t
  :: empty(answers[p]) && empty(messages[p]) -> break
  od;
  end_lease(p); forget_line(p); end_release(p);
  P[p].callers = 0; P[p].owes_back = 0; P[p].owes_too = 0; P[p].dead = true
}

#define in_use(p, an_id) (P[p].id == (an_id) || (P[p].holds && goes_by(p, an_id)))
#define look_helps(p) (key == 0 || key == P[p].id || line_id[p] != P[p].id)

inline look(p) {
  commands[p]!LOOK, P[p].id, 0, 0, 0, P[p].callers;
  P[p].asked = true; P[p].look_from = AFTER; P[p].may_hold = true
}

proctype Client(byte p) {
end:
  do
  /* a caller comes */
  :: d_step {
       !P[p].dead && !quiet && P[p].callers + P[p].holds < callers_at_most(p) && (P[p].id || may_look(p)) ->
         P[p].callers++;
         who = p;
         if
         :: P[p].id == 0 ->
            new_line_id(p);
            if
            :: !P[p].holds -> look(p) /* asks at once; else the holder's release brings it along */
            :: else
            fi
         :: else
         fi;
         end_of_step()
       }
  /* it looks: a timer, a heartbeat, a message, the news that the key has changed */
  :: d_step {
       P[p].callers && !P[p].asked && may_look(p) && (!quiet || look_helps(p)) ->
         look(p);
         end_of_step()
       }
#if GIVEUPS
  /* one gives up, is cancelled, or dismissed */
  :: d_step {
       P[p].callers && !quiet && room(p) && giveups < GIVEUPS ->
         giveups++;
         P[p].callers--;
         if
         :: P[p].callers == 0 -> leave_line(p)
         :: else
         fi;
         end_of_step()
       }
#endif
  /* a body ends, and the next turn of its run begins */
  :: d_step {
       P[p].holds && P[p].turns_left && P[p].callers && P[p].run_from != OVER && room(p) ->
         who = p;
         c_code { now.P[now.who].lease_id = unused_id(now.who); };
         P[p].t++; P[p].from = P[p].run_from; P[p].is_claim = P[p].run_is_claim;
         P[p].turns_left = 0; P[p].run_from = NONE; P[p].run_is_claim = false;
         P[p].turn_from = NONE; P[p].extend_from = NONE; P[p].owes_turn = false;
         P[p].callers--;
         begin(p);
         if
         :: P[p].callers == 0 -> leave_line(p)
         :: else
         fi;
         end_of_step()
       }
  :: d_step { P[p].holds && P[p].known_as != P[p].lease_id && may_send(p) -> tell(p); end_of_step() }
  /* a body ends, and the lock is given back */
  :: d_step {
       P[p].holds && !P[p].releases && may_send(p) ->
         send_release(p, P[p].id, P[p].callers);
         end_lease(p);
         end_of_step()
       }
  /* the holder's own clock says that it is over */
  :: d_step { P[p].holds && P[p].from == OVER -> end_lease(p); end_of_step() }
#if EARLY
  :: d_step { P[p].holds && P[p].from != OVER && !quiet && early < EARLY -> early++; end_lease(p); end_of_step() }
#endif
#if EXTENDS
  :: d_step {
       P[p].holds && !quiet && P[p].extend_from == NONE && may_send(p) ->
         commands[p]!EXTEND, P[p].known_as, P[p].g, P[p].t, 0, 0;
         P[p].extend_from = AFTER;
         end_of_step()
       }
#endif
  :: d_step {
       room(p) && len(answers[p]) -> answers[p]?kind, id, g, t, count, outcome; who = p; hear_answer(p, false); end_of_step() }
  :: d_step {
       !quiet && room(p) && (head_is(answers[p], GRANTED) || head_is(answers[p], RELEASE)) -> answers[p]?kind, id, g, t, count, outcome; who = p; hear_answer(p, true); end_of_step() }
  :: d_step {
       room(p) && len(messages[p]) -> messages[p]?id, g, t; who = p; granted_by_message(p, false); end_of_step() }
  :: d_step {
       room(p) && len(messages[p]) -> messages[p]?id, g, t; who = p; granted_by_message(p, true); end_of_step() }
  /* one that stands in line shows no sign of life in time */
  :: d_step { line_id[p] && P[p].callers == 0 -> drop(p); end_of_step() }
#if SILENCES
  :: d_step { line_id[p] && P[p].callers && !quiet && silences < SILENCES -> silences++; drop(p); end_of_step() }
#endif
#if DEATHS
  :: d_step { !quiet && !P[p].dead && deaths < DEATHS -> deaths++; die(p); end_of_step() }
  :: d_step { P[p].dead && hears[p] -> hears[p] = false; end_of_step() }
  :: d_step { P[p].dead && len(commands[p]) -> commands[p]?kind, id, g, t, next, count; end_of_step() }
#endif
#if MUTES
  :: d_step {
       !quiet && !P[p].dead && hears[p] && mutes < MUTES ->
         do
         :: messages[p]?id, g, t
         :: empty(messages[p]) -> break
         od;
         mutes++; hears[p] = false; end_of_step()
       }
  :: d_step { !P[p].dead && !hears[p] -> hears[p] = true; end_of_step() }
#endif
#if LOSSES
  :: d_step {
       !quiet && !P[p].dead && losses < LOSSES && on_way(p) -> losses++; lose_commands(p); end_of_step() }
  :: d_step {
       P[p].owes_release && may_send(p) ->
         commands[p]!RELEASE, P[p].old_known_as, P[p].old_g, P[p].old_t, 0, 0;
         P[p].owes_release = false;
         end_of_step()
       }
  :: d_step {
       P[p].owes_turn && may_send(p) ->
         commands[p]!TURN, P[p].lease_id, P[p].g, P[p].t, P[p].known_as, 0;
         P[p].owes_turn = false;
         end_of_step()
       }
  :: d_step {
       P[p].owes_back && !in_use(p, P[p].owes_back) && may_send(p) -> /* while it is in use, at that lease's end */
         give_back(p, P[p].owes_back);
         P[p].owes_back = P[p].owes_too; P[p].owes_too = 0;
         end_of_step()
       }
#endif
  od
}

init { atomic { run Client(0); run Client(1); run Client(2) } }

/* Whoever waits has a turn in the end, once nothing goes wrong any more. */
#if GOES_QUIET
ltl served { [] (quiet -> <> everybody_had_a_turn) }
#endif
