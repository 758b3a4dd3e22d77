// Asking again and again, while somebody looks.
import { useEffect, useState } from "preact/hooks";
import { call } from "./api.js";

export function usePoll(path, seconds) {
  const [found, setFound] = useState({ data: null, error: null });
  const [turn, setTurn] = useState(0);
  useEffect(() => {
    let isOver = false;
    let timer = null;
    async function look() {
      if (!document.hidden) {
        try {
          const data = await call(path);
          if (!isOver) setFound({ data, error: null });
        } catch (error) {
          if (!isOver) setFound((former) => ({ ...former, error: error.message }));
        }
      }
      if (!isOver) timer = setTimeout(look, seconds * 1000);
    }
    look();
    return () => {
      isOver = true;
      clearTimeout(timer);
    };
  }, [path, seconds, turn]);
  return { ...found, again: () => setTurn((number) => number + 1) };
}
