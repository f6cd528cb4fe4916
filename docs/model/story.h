/* What a trail tells: the state after each step, in words. Built in with -DSTORY. */
static const char *kinds[] = {"-", "look", "extend", "turn", "release", "give back", "granted", "refused"};
static const char *outcomes[] = {"", " done", " taken", " deleted", " not ours", " next is ours", " in line"};
static const char *moments[] = {"-", "after", "before", "over", "lapsed"};

static void tell_commands(const char *what, Q1 *queue) {
  int i;
  for (i = 0; i < queue->Qlen; i++) {
    printf("  %s: %s(%d g%d.%d", what, kinds[queue->contents[i].fld0], queue->contents[i].fld1, queue->contents[i].fld2, queue->contents[i].fld3);
    if (queue->contents[i].fld4) printf(" next %d", queue->contents[i].fld4);
    printf(")");
  }
}

static void story(void) {
  int p, i;
  printf("  server: key %d", now.key);
  if (now.key) printf(" (g%d.%d of %d turns, %s)", now.grant_g, now.grant_t, now.grant_turns, now.key_length == 1 ? "claim" : "whole");
  else printf(" (last g%d)", now.grant_g);
  printf("; in line:");
  for (p = 0; p < PROCESSES; p++) if (now.line_id[p]) printf(" %d", now.line_id[p]);
  printf("\n");
  for (p = 0; p < PROCESSES; p++) {
    struct Process *it = &now.P[p];
    Q1 *late = (Q1 *)LATE_COMMANDS(now.late[p]), *commands = (Q1 *)COMMANDS(now.commands[p]);
    Q7 *answers = ANSWERS(now.answers[p]);
    Q10 *messages = MESSAGES(now.messages[p]);
    printf("  p%d:%s %d waits, line %d%s%s stood %s told g%d", p, it->dead ? " dead" : "", it->callers, it->id, it->asked ? " asked" : "", it->stands ? " stands" : "", moments[it->stood_from], it->told);
    if (it->holds) printf("; HOLDS g%d.%d id %d known as %d, from %s%s", it->g, it->t, it->lease_id, it->known_as, moments[it->from], it->is_claim ? " (claim)" : "");
    if (it->turns_left) printf(", one more turn");
    if (it->releases) printf("; releases %d g%d.%d", it->old_known_as, it->old_g, it->old_t);
    tell_commands("command", commands); tell_commands("LATE", late);
    for (i = 0; i < answers->Qlen; i++) printf("  answer: %s%s(%d g%d.%d)", kinds[answers->contents[i].fld0], outcomes[answers->contents[i].fld5], answers->contents[i].fld1, answers->contents[i].fld2, answers->contents[i].fld3);
    for (i = 0; i < messages->Qlen; i++) printf("  message: granted(%d g%d, %d turns)", messages->contents[i].fld0, messages->contents[i].fld1, messages->contents[i].fld2);
    printf("\n");
  }
}
