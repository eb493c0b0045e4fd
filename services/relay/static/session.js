/** The token of this tab, and what else it remembers. The token is never part of an address that is asked for. */

const TOKEN = "tickbus.token";
const WANTS = "tickbus.wants";
const THEME = "tickbus.theme";

/** Take a token out of the address (`#token=...`), where no server ever sees it, and remove it there at once. */
export function takeToken() {
  const match = /^#token=(.+)$/.exec(location.hash);
  if (match === null) return;
  history.replaceState(null, "", location.pathname + location.search);
  let token = match[1];
  try {
    token = decodeURIComponent(token);
  } catch {
    // it is no percent-encoding: as it stands
  }
  sessionStorage.setItem(TOKEN, token);
}

export const token = () => sessionStorage.getItem(TOKEN) ?? undefined;
export const keepToken = (text) => sessionStorage.setItem(TOKEN, text);
export const forgetToken = () => sessionStorage.removeItem(TOKEN);

/** What this tab added: [feed, symbol] each. */
export function wanted() {
  try {
    return JSON.parse(sessionStorage.getItem(WANTS) ?? "[]");
  } catch {
    return [];
  }
}

export const keepWanted = (pairs) => sessionStorage.setItem(WANTS, JSON.stringify(pairs));

/** Show dark or light: as chosen here, else as the system prefers. */
export function applyTheme() {
  const chosen = localStorage.getItem(THEME);
  if (chosen === null) delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = chosen;
}

export function switchTheme() {
  const light = getComputedStyle(document.documentElement).colorScheme === "light";
  localStorage.setItem(THEME, light ? "dark" : "light");
  applyTheme();
}
