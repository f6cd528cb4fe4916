// What a page does beyond links and forms: live, pause, ages that count, keys, theme, dialogs. No framework, no eval.
"use strict";
(() => {
  const RETRY_MS = 3000, TICK_MS = 200, CUT_OFF_MS = 4000, QUIET_MS = 12000;
  const live = document.getElementById("live");
  const pauseButton = document.getElementById("pause");
  const liveWord = document.getElementById("live-word");
  const cutOff = document.getElementById("cut-off");
  let paused = false, heardAt = Date.now(), reachedAt = heardAt, state = "connecting", connection = null;

  // Live: htmx swaps each message in; here only what is shown of it, and what happens when it ends.
  function show(next) {
    state = next;
    if (!pauseButton) return;
    const shown = paused ? "paused" : next;
    pauseButton.dataset.state = shown;
    pauseButton.setAttribute("aria-pressed", String(paused));
    const word = { live: "live", paused: "paused", lost: "reconnecting", connecting: "connecting", full: "too many watch", old: "not current" }[shown];
    if (liveWord.textContent !== word) liveWord.textContent = word;
  }

  function pause(wanted) {
    paused = wanted;
    document.documentElement.toggleAttribute("data-paused", paused);
    document.dispatchEvent(new CustomEvent("page:pause", { detail: { paused } }));
    show(state);
  }

  if (live && pauseButton) {
    live.addEventListener("htmx:sse:before:message", (event) => {
      heardAt = Date.now();
      if (paused) event.preventDefault();
    });
    live.addEventListener("htmx:sse:after:message", () => {
      show(isOld() ? "old" : "live");
      // What stands around the view could not be rendered either, when the page was loaded.
      if ("empty" in live.dataset && state === "live") location.reload();
    });
    live.addEventListener("htmx:sse:after:connection", (event) => { connection = event.detail.connection; reachedAt = Date.now(); });
    document.addEventListener("visibilitychange", () => { heardAt = Date.now(); });
    live.addEventListener("htmx:sse:error", (event) => {
      if (event.detail.status === 401) signedOut();
      show("lost");
    });
    live.addEventListener("htmx:sse:close", () => { show("lost"); retry(); });
    live.addEventListener("htmx:response:error", (event) => {
      const status = event.detail.ctx?.response?.status;
      if (status === 401) return signedOut();
      show(status === 503 ? "full" : "lost");
      retry();
    });
    live.addEventListener("htmx:error", () => { show("lost"); retry(); });
    live.addEventListener("signed-out", signedOut);
    pauseButton.addEventListener("click", () => pause(!paused));
  }

  // The page itself says why, and asks for a token. Once, so that a page with and a stream without a session do not loop.
  function signedOut() {
    show("lost");
    const before = Number(sessionStorage.getItem("signed-out-at"));
    if (Date.now() - before < 10000) return;
    sessionStorage.setItem("signed-out-at", String(Date.now()));
    location.reload();
  }

  let retrying = 0;
  function retry() {
    clearTimeout(retrying);
    retrying = setTimeout(() => live.dispatchEvent(new CustomEvent("retry")), RETRY_MS);
  }

  const isOld = () => document.querySelector("#seen.old") !== null;

  // Cut off from the service: what is shown stays, as of its time. A connection that only says nothing is made anew.
  function watchOver() {
    if (!live || paused || document.hidden) return;
    const now = Date.now();
    const isCutOff = now - heardAt > (state === "live" || state === "old" ? QUIET_MS : CUT_OFF_MS);
    if (now - Math.max(heardAt, reachedAt) > QUIET_MS) { reachedAt = now; connection?.reader?.cancel(); }
    if (isCutOff === live.hasAttribute("data-cut-off")) return;
    live.toggleAttribute("data-cut-off", isCutOff);
    cutOff.hidden = !isCutOff;
    if (!isCutOff) return;
    show("lost");
    const seen = document.getElementById("seen"), time = cutOff.querySelector("time");
    const at = new Date(seen ? Number(seen.dataset.at) * 1000 : heardAt).toISOString();
    time.dateTime = at;
    time.textContent = at.slice(11, 19);
  }

  // Between two messages ages grow and leases run down by this clock.
  const begun = new WeakMap();
  function tick() {
    const now = performance.now();
    watchOver();
    if (!paused && !isOld() && !live?.hasAttribute("data-cut-off")) for (const element of document.querySelectorAll("[data-age], [data-left]")) {
      const told = element.dataset.age ?? element.dataset.left;
      let known = begun.get(element);
      if (!known || known.told !== told) begun.set(element, known = { told, at: now });
      const passed = (now - known.at) / 1000, value = Number(told);
      const text = duration(element.dataset.age !== undefined ? value + passed : Math.max(0, value - passed));
      if (element.textContent !== text) element.textContent = text;
    }
  }
  setInterval(tick, TICK_MS);

  function duration(seconds) {
    const three = (value) => value < 9.995 ? value.toFixed(2) : value < 99.95 ? value.toFixed(1) : value.toFixed(0);
    const two = (value) => String(value).padStart(2, "0");
    if (seconds < 0.0000005) return "0 s";
    if (seconds < 0.0009995) return (seconds * 1e6).toFixed(0) + " µs";
    if (seconds < 0.9995) return three(seconds * 1000) + " ms";
    if (seconds < 59.95) return three(seconds) + " s";
    const whole = Math.round(seconds);
    if (whole < 3600) return Math.floor(whole / 60) + " min " + two(whole % 60) + " s";
    if (whole < 86400) return Math.floor(whole / 3600) + " h " + two(Math.floor(whole % 3600 / 60)) + " min";
    return Math.floor(whole / 86400) + " d " + Math.floor(whole % 86400 / 3600) + " h";
  }

  // Theme: the form works without this, but loads the page anew.
  document.getElementById("themes")?.addEventListener("submit", (event) => {
    const theme = event.submitter?.value;
    if (!theme) return;
    event.preventDefault();
    const secure = location.protocol === "https:" ? "; Secure" : "";
    document.cookie = `chargeonce_theme=${theme}; Path=/dashboard; Max-Age=31536000; SameSite=Strict${secure}`;
    document.documentElement.dataset.theme = theme;
    for (const button of event.currentTarget.querySelectorAll("button")) button.setAttribute("aria-pressed", String(button.value === theme));
    document.dispatchEvent(new CustomEvent("page:theme"));
  });

  // Dialogs: the keys, and the question before a forced release.
  const help = document.getElementById("help");
  document.getElementById("help-button")?.addEventListener("click", () => help.showModal());
  const force = document.getElementById("force");
  document.addEventListener("click", (event) => {
    if (event.target.closest("[data-close]")) { event.target.closest("dialog").close(); return; }
    const button = event.target.closest("#force-button");
    if (!button || !force || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    force.querySelector("[data-fill=holder]").textContent = button.dataset.holder;
    force.querySelector("[data-fill=told]").textContent = button.dataset.told;
    force.querySelector("[data-fill=age]").textContent = button.dataset.held;
    force.querySelector("[data-fill=token]").textContent = button.dataset.token;
    force.querySelector("[name=fencing_token]").value = button.dataset.token;
    force.showModal();
    force.querySelector("[name=reason]").focus();
  });

  // Keys. Not while something is written, and not with a modifier.
  const PLACES = { o: "", l: "/locks", h: "/hot", m: "/heatmap", i: "/incidents", n: "/instances", c: "/charges", a: "/audit-log" };
  let going = false;
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
    if (event.target.closest("input, textarea, select, dialog[open]") || !help) return;
    const key = event.key;
    if (going) {
      going = false;
      if (key in PLACES) { event.preventDefault(); location.assign("/dashboard" + PLACES[key]); }
      return;
    }
    if (key === "/") {
      event.preventDefault();
      const search = document.getElementById("search");
      if (search) { search.focus(); search.select(); } else location.assign("/dashboard/locks#search");
    } else if (key === "p" && pauseButton && live) { event.preventDefault(); pause(!paused); }
    else if (key === "?") { event.preventDefault(); help.showModal(); }
    else if (key === "g") { going = true; setTimeout(() => { going = false; }, 1000); }
  });
  if (location.hash === "#search") document.getElementById("search")?.focus();
  if (pauseButton && !live) pauseButton.hidden = true;
})();
